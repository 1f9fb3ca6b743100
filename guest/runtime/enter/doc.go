// Package enter is what runs between clone and execve of a container process:
// it sets up mounts, devices, terminal, identity and confinement with plain
// system calls and then becomes the container's program.
//
// The agent precomputes everything (mount flags, capability bit sets, the
// seccomp program) and sends it as one Config over the control socket, file
// descriptor 3; cmd/dhow-enter calls Main, which answers with Reports. The
// order of messages on that stream socket is:
//
//	agent → enter   config: 4-byte little-endian length, then Encode's bytes
//	enter → agent   terminal report, carrying the pty master (SCM_RIGHTS), if asked for
//	enter → agent   ready report: everything is set up but the last two steps
//	agent → enter   one byte: go (not for exec)
//	                seccomp filter, execve; the socket is close-on-exec
//	enter → agent   end of file: the program runs; or a failed report
//
// Nothing here allocates goroutines, uses package os, fmt or the network
// poller, or makes a system call through the scheduler: the process is on the
// hot path of every start, and all that it changes is per thread.
//
// The root file system is hostile. Until pivot_root every path below it is
// resolved by openat2 with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS, mounted
// on by descriptor, and never resolved twice; proc and sysfs go on real
// directories only. No descriptor of a host file or directory is open when the
// working directory is entered, and the working directory is then checked to
// be reachable from the new root (CVE-2024-21626).
package enter
