"""The book: one chapter per rule, in percent format. Run a file, or call ``gradderiv.book.run`` on it."""
