def huge_pages():
    "mapping of huge pages | is there, with its page size"
    libc.mmap.restype = ctypes.c_void_p
    # MAP_NORESERVE, MAP_HUGETLB: nothing is taken until it is touched.
    address = libc.mmap(None, 4 << 20, 3, 0x40000 | 0x4000 | 0x22, -1, 0)
    assert address not in (None, 2**64 - 1), os.strerror(ctypes.get_errno())
    def size():
        mine = False
        for line in open("/proc/self/smaps"):
            mine = mine or line.startswith(f"{address:x}-")
            if mine and line.startswith("KernelPageSize:"):
                return line.split()[1:]
    same(size(), ["2048", "kB"])
    yield
    same(size(), ["2048", "kB"])
