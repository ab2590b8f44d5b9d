"""What `loadtests/locustfile.py` is made of: people, swarms, and the books that both keep."""
