# What runs in the container of hack/demo: it counts, and writes to its root file system.
import time

with open("/note", "w") as note:
    note.write("written on demo-a\n")
n = 0
while True:
    n += 1
    print(n, flush=True)
    with open("/counted", "a") as counted:
        counted.write(f"{n}\n")
    time.sleep(0.5)
