"""The paper's figures and tables: what each needs, how it is made, and what it is read as."""
