#!/usr/bin/env bash
# `make run`: starts the machine and runs the built-in container in it.
set -euo pipefail
cd "$(dirname "$0")/.."
dhow=bin/dhow
now() { date +%s%N; }
took() { awk -v a="$1" -v b="$(now)" 'BEGIN{printf "%.2f s", (b-a)/1e9}'; }

t=$(now)
"$dhow" machine start >/dev/null
started=$(took "$t")
image=dhow/hello
t=$(now)
"$dhow" run --rm -m 64m --pids-limit 64 --hostname hello "$image" sh -c '
  echo "Hello from a container."
  echo "  kernel     $(uname -srm)"
  echo "  host name  $(hostname), process $$ of its own"
  echo "  cgroup     $(cat /proc/self/cgroup), at most $(cat /sys/fs/cgroup/memory.max) bytes of memory and $(cat /sys/fs/cgroup/pids.max) processes"
  echo "  root       $(awk "\$5==\"/\"{print \$9}" /proc/self/mountinfo)"
  echo "  confined   $(grep -E "^Seccomp:" /proc/self/status | tr "\t" " "), $(grep CapEff /proc/self/status | tr "\t" " ")"'
ran=$(took "$t")
echo "  image      $("$dhow" image inspect --format '{{.ID}}' "$image")"
"$dhow" image inspect --format '{{range .RootFS.Layers}}{{println " " "layer     " .}}{{end}}' "$image" | sed '/^$/d'
echo
"$dhow" machine status | grep -E '^(State|Driver|Acceleration|Up for|Kernel|Docker socket)' | sed 's/^/  /'
echo
echo "The machine was up after $started, the container was created, run and removed in $ran."
echo "Try: $PWD/$dhow run -it --rm $image     Stop the machine: $PWD/$dhow machine stop"
