from benchmarks.limit.limit import main

main()
