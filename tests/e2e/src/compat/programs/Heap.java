import java.io.*;
import java.lang.management.*;
import java.net.*;
import java.nio.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;

/** Threads that change a heap, a timer, an open file, and a socket that answers about them. */
public class Heap {
    /** One thread and its part of the heap, with the sum that its values have to have. */
    static class Part extends Thread {
        final Map<Integer, int[]> values = new HashMap<>();
        final Random random = new Random(getName().hashCode());
        final AtomicLong rounds = new AtomicLong();
        long sum;

        Part(int n) {
            super("part" + n);
        }

        @Override
        public void run() {
            while (true) {
                synchronized (this) {
                    int[] fresh = random.ints(16, 0, 1000).toArray();
                    for (int value : fresh) sum += value;
                    int[] old = values.put(random.nextInt(20000), fresh);
                    if (old != null) for (int value : old) sum -= value;
                }
                // No more than a part of a core.
                if (rounds.incrementAndGet() % 2000 == 0) rest();
            }
        }

        synchronized boolean holds() {
            long found = 0;
            for (int[] value : values.values()) for (int v : value) found += v;
            return found == sum;
        }
    }

    static void rest() {
        try {
            Thread.sleep(10);
        } catch (InterruptedException e) {
            throw new RuntimeException(e);
        }
    }

    static final List<Part> parts = new ArrayList<>();
    static final AtomicLong ticks = new AtomicLong();
    static final AtomicLong virtual = new AtomicLong();
    static final long start = System.nanoTime();
    static final ByteBuffer outside = ByteBuffer.allocateDirect(1 << 20);
    static PrintStream file;

    static String answer(String question) {
        switch (question) {
            case "heap":
                return parts.stream().allMatch(Part::holds) + " " + parts.stream().mapToLong(p -> p.rounds.get()).sum();
            case "collected":
                System.gc();
                long all = 0;
                for (var collector : ManagementFactory.getGarbageCollectorMXBeans()) all += collector.getCollectionCount();
                return "" + all;
            case "threads":
                var names = new TreeSet<String>();
                for (Thread thread : Thread.getAllStackTraces().keySet()) names.add(thread.threadId() + ":" + thread.getName());
                names.removeIf(name -> name.contains("client") || name.contains("ForkJoin") || name.contains("Compiler"));
                return String.join(",", names);
            case "virtual":
                return "" + virtual.get();
            case "ticks":
                return ticks.get() + " " + (System.nanoTime() - start) / 10_000_000;
            case "outside":
                int found = 0;
                for (int i = 0; i < outside.capacity(); i++) found = found * 31 + outside.get(i);
                return "" + found;
            default:
                return question;
        }
    }

    static void serve(Socket client) {
        try (client) {
            var in = new BufferedReader(new InputStreamReader(client.getInputStream()));
            var out = new PrintStream(client.getOutputStream(), true);
            for (String line; (line = in.readLine()) != null; ) out.println(answer(line));
        } catch (IOException e) {
            e.printStackTrace();
        }
    }

    public static void main(String[] args) throws Exception {
        file = new PrintStream(new FileOutputStream("/data/lines", true), true);
        new Random(1).ints(outside.capacity()).forEach(value -> outside.put((byte) value));
        for (int n = 0; n < 4; n++) parts.add(new Part(n));
        parts.forEach(Thread::start);
        Executors.newScheduledThreadPool(1).scheduleAtFixedRate(
            () -> file.println(ticks.getAndIncrement()), 0, 10, TimeUnit.MILLISECONDS);
        for (int n = 0; n < 100; n++) {
            Thread.startVirtualThread(() -> {
                for (; ; rest()) virtual.incrementAndGet();
            });
        }
        var server = new ServerSocket(7000);
        while (true) {
            Socket client = server.accept();
            new Thread(() -> serve(client), "client").start();
        }
    }
}
