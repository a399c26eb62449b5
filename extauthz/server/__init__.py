"""The composition root: what is wired to what, what runs beside what, and how it stops."""
