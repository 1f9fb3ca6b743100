// Package runtime runs containers: it turns an OCI runtime-spec into processes
// with namespaces, a cgroup of version 2, mounts and confinement of their own.
//
// The life of a container is Create (cloned into its cgroup, set up, waiting),
// Start (execve), Wait and Exit, Delete; Exec adds processes in between. The
// heavy part runs in forks of cmd/dhow-enter: package enter holds its side and
// the messages, and this package precomputes what it needs so that it only
// makes system calls. Nothing is shelled out to, no thread of the agent enters a
// namespace, and every process is a child of the agent's, known by a pidfd,
// waited for by one parked goroutine (no thread).
//
// A start, step by step: plan.go translates the spec; create.go makes the
// cgroup with its limits, and forker.go asks the waiting dhow-enter for a fork in
// that cgroup and PID namespace (enter/serve.go); the fork reads the plan from
// its control socket, makes its other namespaces, mounts, pivots, takes its
// identity and looks the program up (enter/root.go, enter/process.go), and says
// that it is ready; start.go lets it install the seccomp filter and execute the
// program.
//
// An exec is born in all namespaces of the container at once, so that a process
// in there never sees one that still has the machine's root. Until its identity
// is set it has the agent's capabilities: a container with CAP_SYS_PTRACE could
// trace it for that moment, as with other runtimes, and is to be given that
// capability only if it is trusted with the others too.
//
// The callers are the engine (by the types of this package), and the agent,
// which makes the one Runtime. It must not know of images, networks or the
// Docker API.
//
// dhow-enter is executed from a file that nobody can write: as it is where it
// lies on a read-only file system, else from a sealed copy in memory, so that
// no container can overwrite it through /proc/PID/exe (CVE-2019-5736).
package runtime
