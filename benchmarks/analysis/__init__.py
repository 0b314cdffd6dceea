"""What records tell: the table, which losses agree, exponents, the published numbers; tables and words, no pictures."""
