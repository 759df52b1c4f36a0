//! Loggers: `binary://` and `binary-v2://`.

use std::time::Duration;

use cryo_shim::task::reaper::Reaper;
use ttrpc::Code;

use crate::bench::{Bench, Shells, code};

/// Copies both streams, and tells what the logger was given.
const LOGGER: &str = r#"
to=$2
{ echo "id=$CONTAINER_ID ns=$CONTAINER_NAMESPACE args=$*"; ls -l /proc/$$/fd; env; } >"$to.start"
cat <&4 >"$to.err" 5>&- &
exec 4<&-
printf x >&5
exec 5>&-
cat <&3 >"$to.out"
wait
echo done >"$to.end""#;

pub(crate) async fn loggers_get_all_output(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    for scheme in ["binary", "binary-v2"] {
        let logger = bench.logger(scheme, LOGGER);
        let to = bench.dir.path().join(scheme);
        let read = |name: &str| {
            let text = std::fs::read_to_string(to.with_extension(name));
            text.unwrap_or_else(|e| format!("{name}: {e}"))
        };
        let address = format!("{logger}?to={}", to.display());
        let script = "yes out | head -c 1048576; echo err >&2; exec sleep 60";
        bench.create_to("a", script, &address).await.unwrap();
        given(
            &read("start"),
            &format!("id=a ns=test args=to {}", to.display()),
        );
        bench.start("a").await.unwrap();

        // An exec has one of its own, under its own name.
        let exec_to = bench.dir.path().join(format!("{scheme}-exec"));
        let address = format!("{logger}?to={}", exec_to.display());
        bench
            .exec_to("a", "e", "echo exec", &address)
            .await
            .unwrap();
        bench.start_exec("a", "e").await.unwrap();
        bench.wait_exec("a", "e").await.unwrap();
        bench.delete_exec("a", "e").await.unwrap();
        let read_exec = |name| std::fs::read_to_string(exec_to.with_extension(name)).unwrap();
        assert!(read_exec("start").starts_with("id=e ns=test"));
        assert_eq!(read_exec("out"), "exec\n");
        assert_eq!(read_exec("end"), "done\n");

        // Its own end, so that all is written.
        while read("err") != "err\n" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.kill("a", 9).await.unwrap();
        bench.wait("a").await.unwrap();
        bench.delete("a").await.unwrap();
        assert_eq!(read("end"), "done\n", "Delete waits for the logger");
        assert!(
            read("out") == "out\n".repeat(262_144),
            "{}",
            read("out").len()
        );
        std::fs::remove_file(bench.dir.path().join("a/gate")).unwrap();
    }
}

/// Checks what a logger was started with: arguments, environment, descriptors.
fn given(seen: &str, wanted: &str) {
    let (first, rest) = seen.split_once('\n').unwrap();
    assert_eq!(first, wanted);
    let shells_own = ["PWD", "OLDPWD", "SHLVL", "_", "PATH"];
    let mut variables: Vec<_> = rest
        .lines()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name))
        .filter(|name| !shells_own.contains(name))
        .collect();
    variables.sort_unstable();
    assert_eq!(variables, ["CONTAINER_ID", "CONTAINER_NAMESPACE"], "{seen}");
    let mut numbers = Vec::new();
    for line in rest.lines() {
        let Some((number, target)) = line.split_once(" -> ") else {
            continue;
        };
        let number: u32 = number.rsplit(' ').next().unwrap().parse().unwrap();
        if number >= 10 {
            // The shell's own: its script, and what it saves beside redirections.
            assert!(
                target.contains("/logger-") || target == "/dev/null",
                "{seen}"
            );
            continue;
        }
        if number > 2 {
            assert!(target.starts_with("pipe:"), "{seen}");
        }
        numbers.push(number);
    }
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5], "{seen}");
}

pub(crate) async fn loggers_that_do_not_start_fail_the_create(reaper: Reaper) {
    let bench = Bench::new(reaper.clone(), Shells::default()).await;
    let silent = Bench::new(reaper, Shells::default()).await;
    let refused = async |bench: &Bench, logger: &str, why: &str| {
        let (refused, text) = code(bench.create_to("a", "exit 0", logger).await);
        assert_eq!(refused, Code::FAILED_PRECONDITION, "{text}");
        assert!(text.contains(why), "{text}");
        assert!(!bench.dir.path().join("state/test/a").exists());
    };
    // As long as the limit, so beside the others.
    let late = async {
        let logger = silent.logger("binary-v2", "exec sleep 60");
        refused(&silent, &logger, "is not ready after").await;
    };
    let others = async {
        for (scheme, script, why) in [
            (
                "binary",
                "exit 3",
                "ended with status 3 before it was ready",
            ),
            (
                "binary-v2",
                "exit 0",
                "ended with status 0 before it was ready",
            ),
            ("binary-v2", "exec 5>&-; sleep 60", "without a byte"),
        ] {
            refused(&bench, &bench.logger(scheme, script), why).await;
        }
        refused(&bench, "binary:///nonexistent/logger", "No such file").await;
        // An end without a failure is what the older protocol lets pass.
        let logger = bench.logger("binary", "exit 0");
        bench.create_to("a", "exit 0", &logger).await.unwrap();
        bench.delete("a").await.unwrap();
    };
    tokio::join!(late, others);
    assert_eq!(bench.running("logger-"), Vec::<String>::new());
    assert_eq!(silent.running("logger-"), Vec::<String>::new());
}

pub(crate) async fn loggers_that_do_not_end_are_ended(reaper: Reaper) {
    let benches = [
        // Ends when it is asked to, and only then.
        (
            Bench::new(reaper.clone(), Shells::default()).await,
            "trap 'echo asked >$2; exit 0' TERM; exec 5>&-; while :; do sleep 0.1; done",
            "asked\n",
        ),
        // Does not even then.
        (
            Bench::new(reaper, Shells::default()).await,
            "trap '' TERM; echo deaf >$2; exec 5>&-; while :; do sleep 0.1; done",
            "deaf\n",
        ),
    ];
    let [one, two] = benches.each_ref().map(async |(bench, script, said)| {
        let to = bench.dir.path().join("said");
        let logger = format!("{}?to={}", bench.logger("binary", script), to.display());
        bench.create_to("a", "exit 0", &logger).await.unwrap();
        assert_eq!(bench.running("logger-").len(), 1);
        bench.start("a").await.unwrap();
        bench.wait("a").await.unwrap();
        bench.delete("a").await.unwrap();
        assert_eq!(std::fs::read_to_string(to).unwrap(), *said);
        assert_eq!(bench.running("logger-"), Vec::<String>::new());
    });
    tokio::join!(one, two);
}
