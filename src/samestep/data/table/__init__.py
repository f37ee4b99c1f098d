"""Tables: which columns there are, what each of them is, and how rows become numbers that a network takes."""
