# shellcheck shell=bash
# Shared by hack/lab, supervise and node-init. Expects LAB_DIR.

# The name of a node's cgroup: one folder of its own below the root of every hierarchy.
cgroup_name() { # cgroup_name NODE → REPLY
	if [[ -z ${LAB_ID-} ]]; then
		LAB_ID=$(printf %s "$LAB_DIR" | cksum)
		LAB_ID=$(printf %08x "${LAB_ID%% *}")
	fi
	REPLY=cryo-lab-$LAB_ID-$1
}

# Every cgroup hierarchy of this mount namespace, once each:
# HIER_AT (mount points), HIER_TYPE (cgroup, cgroup2), HIER_OPTS (what mounts it again).
hierarchies() {
	HIER_AT=() HIER_TYPE=() HIER_OPTS=()
	local line fields tail dev at o seen=' ' opts
	while read -r line; do
		[[ $line == *' - cgroup'* ]] || continue
		read -ra fields <<<"${line%% - *}"
		read -ra tail <<<"${line##* - }"
		dev=${fields[2]} at=${fields[4]}
		[[ ${tail[0]} == cgroup || ${tail[0]} == cgroup2 ]] || continue
		[[ $seen != *" $dev "* ]] || continue
		seen+="$dev "
		opts=
		if [[ ${tail[0]} == cgroup ]]; then
			for o in ${tail[2]//,/ }; do
				case $o in
				rw | ro | xattr | clone_children | noprefix | release_agent=* | cpuset_v2_mode | favordynmods) ;;
				name=*) opts+=,none,$o ;;
				*) opts+=,$o ;;
				esac
			done
		fi
		HIER_AT+=("$at") HIER_TYPE+=("${tail[0]}") HIER_OPTS+=("${opts#,}")
	done </proc/self/mountinfo
}

# When a process started, in clock ticks since boot: with the pid it names one process for ever.
start_time() { # start_time PID → REPLY
	local s f
	{ read -r s <"/proc/$1/stat"; } 2>/dev/null || return 1
	read -ra f <<<"${s##*) }"
	[[ ${f[0]} != [ZX] ]] || return 1
	REPLY=${f[19]}
}

is_process() { # is_process PID START
	start_time "$1" && [[ $REPLY == "$2" ]]
}

# Removes a node's cgroups in every hierarchy, killing what is left in them. Harmless when there are none.
remove_cgroups() { # remove_cgroups NODE [SECONDS]
	local name at f pid left tries=$((${2:-15} * 20))
	cgroup_name "$1"
	name=$REPLY
	hierarchies
	while :; do
		left=
		for at in "${HIER_AT[@]}"; do
			[[ -d $at/$name ]] || continue
			# A frozen task does not die: thaw first.
			while read -r f; do
				case $f in
				*/freezer.state) echo THAWED >"$f" ;;
				*/cgroup.freeze) echo 0 >"$f" ;;
				*/cgroup.procs)
					while read -r pid; do
						[[ $pid == 0 ]] || kill -KILL "$pid"
					done <"$f"
					;;
				esac 2>/dev/null
			done < <(find "$at/$name" \( -name freezer.state -o -name cgroup.freeze -o -name cgroup.procs \) 2>/dev/null | LC_ALL=C sort -r)
			find "$at/$name" -depth -type d -exec rmdir {} \; 2>/dev/null
			[[ ! -d $at/$name ]] || left+=" $at/$name"
		done
		[[ -n $left ]] || return 0
		((tries-- > 0)) || break
		sleep 0.05
	done
	echo "lab: these cgroups of $1 could not be removed (a process in state D?):$left" >&2
	return 1
}
