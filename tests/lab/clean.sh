#!/bin/bash
# The lab leaves nothing behind: compares this machine before and after nodes that were ended in every way.
#
#   tests/lab/clean.sh [CASE...]     needs root and what hack/lab needs
#
# Compared are mounts, network interfaces, processes, cgroup folders in every hierarchy and namespaces. The machine may
# be busy with other things, other labs among them: a process counts when it carries this test's mark in its
# environment or is in a namespace that this test is not in, and is not another lab's; a cgroup counts when it names a
# node of this test or is empty. What is new gets ten seconds to go.
set -u
REPO=$(cd "$(dirname "$0")/../.." && pwd)
LAB=$REPO/hack/lab
LAB_DIR=${LAB_DIR:-$REPO/.lab}
MARK=CRYO_LAB_TEST=clean-$$-$RANDOM # only hack/lab and what it starts have it
lab() { env "$MARK" LAB_QUIET=1 "$LAB" "$@"; }
A=clean-a-$$ B=clean-b-$$
WORK=$(mktemp -d)
passed=0 failed=0
trap 'lab down "$A" "$B" 2>/dev/null; rm -rf "$WORK" "$LAB_DIR/nodes/$A" "$LAB_DIR/nodes/$B" "$LAB_DIR/locks/$A" "$LAB_DIR/locks/$B"' EXIT

NS='{mnt,pid,net,uts,ipc,cgroup,user,time}'
OWN=" $(eval "readlink /proc/self/ns/$NS" 2>/dev/null | tr '\n' ' ')"

# Processes and the namespaces that they hold. A few programs over all of /proc: it is looked at often.
processes() {
	local pid link marked other seen=' '
	marked=" $(grep -lzx "$MARK" /proc/[0-9]*/environ 2>/dev/null | tr -dc '0-9\n' | tr '\n' ' ')"
	other=" $(grep -l cryo-lab- /proc/[0-9]*/cgroup 2>/dev/null | xargs -r grep -LE "$A|$B" 2>/dev/null | tr -dc '0-9\n' | tr '\n' ' ')"
	for pid in $marked; do echo "process $pid"; done
	while read -r pid link; do
		[[ $other != *" $pid "* && $OWN != *" $link "* ]] || continue
		echo "namespace $link"
		[[ $seen == *" $pid "* ]] || echo "process $pid"
		seen+="$pid "
	done < <(find /proc/[0-9]*/ns -mindepth 1 -type l ! -name '*_for_children' -printf '%h %l\n' 2>/dev/null | sed 's,^/proc/\([0-9]*\)/ns,\1,')
	# held by a mount
	sed -n 's/.* - nsfs \([^ ]*\) .*/namespace \1/p' /proc/self/mountinfo
}

cgroups() {
	local d
	awk '$(NF-2) ~ /^cgroup2?$/ {print $5}' /proc/self/mountinfo | sort -u | while read -r d; do
		find "$d" -mindepth 1 -type d 2>/dev/null
	done | while read -r d; do
		case $d in
		*"$A"* | *"$B"*) ;;
		*/cryo-lab-*) continue ;;
		*) ! read -r _ 2>/dev/null <"$d/cgroup.procs" || continue ;;
		esac
		echo "cgroup $d"
	done
}

snapshot() {
	{
		sed 's/^/mount /' /proc/self/mountinfo
		find /sys/class/net -mindepth 1 -printf 'interface %f\n'
		processes
		cgroups
	} | sort -u >"$1"
}

# What is new since `before`, given time to go.
left() {
	local i
	rm -f "$WORK/left"
	for ((i = 0; i < 20; i++)); do
		snapshot "$WORK/after"
		comm -13 "$WORK/before" "$WORK/after" >"$WORK/new"
		# only what is there every time: other labs' short-lived processes come and go
		if [[ -e $WORK/left ]]; then comm -12 "$WORK/left" "$WORK/new" >"$WORK/both"; else cp "$WORK/new" "$WORK/both"; fi
		mv "$WORK/both" "$WORK/left"
		[[ -s $WORK/left ]] || break
		sleep 0.5
	done
	comm -23 "$WORK/before" "$WORK/after" | grep -E '^(mount|interface) ' | sed 's/^/gone: /' >>"$WORK/left"
	local kind what
	while read -r kind what; do
		[[ $kind != process ]] || what+=" ($(tr '\0' ' ' <"/proc/$what/cmdline" 2>/dev/null))"
		echo "$kind $what"
	done <"$WORK/left"
}

problem=
fail() { problem+="${problem:+; }$*"; }
expect() { # expect WHAT CMD...
	local what=$1
	shift
	"$@" >"$WORK/out" 2>&1 || fail "$what: $(tail -n2 "$WORK/out" | tr '\n' ' ')"
}

wanted=" $* "
check() { # check NAME: runs case_NAME between two looks at the machine
	local leaks n
	[[ $wanted == "  " || $wanted == *" $1 "* ]] || return 0
	problem=
	snapshot "$WORK/before"
	"case_$1"
	leaks=$(left)
	if [[ -n $leaks ]]; then
		n=$(wc -l <<<"$leaks")
		fail "left behind ($n): $(head -n 4 <<<"$leaks" | tr '\n' ',')"
	fi
	for node in "$A" "$B"; do
		[[ -z $(find "$LAB_DIR/nodes/$node" -mindepth 1 -maxdepth 1 ! -name log 2>/dev/null) || $1 == *kill* ]] ||
			fail "the folder of $node is not empty"
	done
	if [[ -z $problem ]]; then
		echo "ok $1"
		passed=$((passed + 1))
	else
		echo "FAIL $1: $problem"
		failed=$((failed + 1))
		lab down "$A" "$B" >/dev/null 2>&1
	fi
}

up() { expect "up" lab up "$@"; }
down() { expect "down" lab down "$@"; }
in_a() { expect "in the node: $*" lab exec "$A" "$@"; }
container() { in_a ctr run -d localhost:5000/busybox:1 "$1" sh -c 'sleep 1000 & sleep 1000'; }

case_up_down() {
	up "$A"
	down "$A"
}

case_two_nodes() {
	up "$A" "$B"
	in_a busybox ping -c1 -W2 "10.88.0.$(<"$LAB_DIR/nodes/$B/index")"
	down "$A" "$B"
}

case_running_container() {
	up "$A"
	container c1
	in_a ctr task ls
	grep -q RUNNING "$WORK/out" || fail "the container does not run"
	down "$A"
}

case_paused_container() {
	up "$A"
	container c1
	in_a ctr task pause c1
	down "$A"
}

case_command_in_node() {
	up "$A"
	lab exec "$A" sh -c 'trap "" TERM; sleep 1000 & wait' >/dev/null 2>&1 &
	local p=$!
	sleep 0.5
	down "$A"
	wait "$p"
}

case_pid1_killed() {
	up "$A"
	container c1
	kill -KILL "$(lab pid "$A")"
}

case_watcher_killed() {
	up "$A"
	container c1
	kill -KILL "$(cut -d' ' -f1 "$LAB_DIR/nodes/$A/supervisor")"
	sleep 0.5
	lab pid "$A" >/dev/null 2>&1 && fail "the node lives on without its watcher"
	down "$A"
}

# `up` hit after some seconds: by Ctrl-C in a terminal (the whole group), or itself alone.
interrupted() { # interrupted SIGNAL SECONDS GROUP
	local p
	setsid env --default-signal=INT,TERM "$MARK" LAB_QUIET=1 "$LAB" up "$A" "$B" >"$WORK/out" 2>&1 &
	p=$!
	sleep "$2"
	kill "-$1" -- "$3$p" 2>/dev/null
	if wait "$p" 2>/dev/null; then down "$A" "$B"; fi
}
case_interrupt() {
	local t
	for t in 0.02 0.1 0.2 0.4 0.8 1.6 2.4; do interrupted INT "$t" -; done
}
case_interrupt_alone() {
	local t
	for t in 0.15 0.5 1 2.4; do interrupted INT "$t" ""; done
}
case_terminated() {
	local t
	for t in 0.15 0.5 2; do interrupted TERM "$t" ""; done
}
# Killed it can do nothing itself; its watchers see it.
case_up_killed() {
	local t
	for t in 0.1 0.3 0.6 1; do
		interrupted KILL "$t" ""
		sleep 1
		lab down "$A" "$B" >/dev/null 2>&1
	done
}

case_run() {
	# shellcheck disable=SC2016
	lab run "$A" -- sh -c '[ "$LAB_NODES" = "$0" ] && "$1" exec "$0" true && exit 3' "$A" "$LAB" >"$WORK/out" 2>&1
	[[ $? == 3 ]] || fail "run did not pass the exit code on: $(tail -n2 "$WORK/out")"
}

case_run_terminated() {
	setsid env --default-signal=INT,TERM "$MARK" LAB_QUIET=1 "$LAB" run "$A" -- sleep 1000 >"$WORK/out" 2>&1 &
	local p=$! i
	for ((i = 0; i < 200; i++)); do
		[[ ! -e $LAB_DIR/nodes/$A/committed ]] || break
		sleep 0.1
	done
	kill -TERM -- "-$p"
	if wait "$p" 2>/dev/null; then fail "run ended well though it was terminated"; fi
}

lab build || exit 1
for c in up_down two_nodes running_container paused_container command_in_node pid1_killed watcher_killed \
	interrupt interrupt_alone terminated up_killed run run_terminated; do
	check "$c"
done
echo "$passed passed, $failed failed"
((failed == 0))
