"""One run on many devices: processes by Ray, weights sharded by torch; none of it where one device is enough."""
