"""The golden cases by kind: what each recorded array must equal in our code, and how closely."""
