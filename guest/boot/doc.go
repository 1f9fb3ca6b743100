// Package boot is PID 1 of a dhow machine: what happens between the kernel's
// jump into user space and the running agent, and again at power-off.
//
// It is called by cmd/dhow-init only, and knows nothing of containers, images or
// the Docker API. It must never end and never panic: every goroutine is
// guarded, and what cannot be done is said on the console.
//
// # Order
//
// Stage 1 runs from the initramfs (Run, stage1.go): mount devtmpfs, proc, sysfs;
// load the modules that reach the root disk; find the disk by its serial number,
// waiting for the kernel's uevents; mount it; read and delete /boot.json;
// make it the root.
//
// Stage 2 goes on in the same process (stage2.go), side by side: mounts,
// control groups, sysctls; vsock and network modules; the data disk. Then the
// agent is started and supervised (agent.go); what only containers need is
// loaded while the agent starts.
//
// # The data disk
//
// A disk is formatted only if its first MiB is all zero, or if it carries the
// label of a format that did not finish. A disk with any other content that is
// not ext4 is never written to. A dirty file system is checked with e2fsck -p,
// and with -y only if -p gives up. See datadisk.go.
//
// # What the agent gets
//
// Standard input: the content of /boot.json, to its end. Standard output and
// error: lines that go to the console. Environment:
//
//	DHOW_BOOT_STEPS  name=ns,name=ns,… since the kernel's start (CLOCK_BOOTTIME), in order
//	DHOW_DATA_ERROR  one sentence, only if /var/lib/dhow is not there; the agent
//	                 has to tell it to the host and must not write below it
//
// # The socket /run/dhow/init.sock
//
// A stream socket, mode 0600. A client sends one line, reads the answer to its
// end:
//
//	poweroff   answer "ok"; the machine goes down as described at shutdown
//	reboot     the same, then restarts
//	exits      one line per orphan that init reaped, oldest first, at most
//	           maxExits of them: "<pid> <exit code> <signal or 0> <unix ns>";
//	           signal is that which ended it, and then the code is 128+signal
//
// An unknown line is answered with "error: …".
package boot
