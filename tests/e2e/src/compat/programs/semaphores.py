def semaphores():
    "eventfd that is a semaphore | counts down by one"
    f = os.eventfd(7, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
    yield
    same(os.eventfd_read(f), 1)
