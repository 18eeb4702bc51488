"""Which copy of an expert takes which token: rules that engines follow, and splits."""
