//go:build linux

package enter

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// init makes this process the init of the container (docker's --init): it
// returns in a child, which is to execute the program, and itself passes
// signals on to that, reaps what is orphaned, and ends as the program does. It
// has one thread, so that no signal goes elsewhere, and nothing of the agent's
// left: root, namespaces, identity and filter are the container's.
func (c *Config) init() *failure {
	if f := c.settle(); f != nil {
		return f
	}
	name := cstr("docker-init")
	prctl(unix.PR_SET_NAME, uintptr(name), 0)
	all, none := ^uint64(0), uint64(0)
	mask := func(set *uint64) {
		sys6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(set)), 0, 8, 0, 0)
	}
	mask(&all)
	pid, e := sys6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 {
		return fail("fork the program from init", "", e)
	}
	if pid == 0 {
		// In a process group of its own, in front if there is a terminal.
		sys3(unix.SYS_SETPGID, 0, 0, 0)
		if c.Flags&Terminal != 0 {
			self, _ := sys3(unix.SYS_GETPID, 0, 0, 0)
			group := int32(self)
			ioctl(0, unix.TIOCSPGRP, uintptr(unsafe.Pointer(&group)))
		}
		mask(&none)
		return nil
	}
	sys3(unix.SYS_CLOSE_RANGE, 3, 1<<32-1, 0) // the child alone tells the agent how execve went
	for {
		var info [128]byte
		sig, e := sys6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&info)), 0, 8, 0, 0)
		if e != 0 {
			continue
		}
		if sig != uintptr(unix.SIGCHLD) {
			sys3(unix.SYS_KILL, pid, sig, 0)
			continue
		}
		for {
			var status int32
			p, e := sys6(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&status)), unix.WNOHANG, 0, 0, 0)
			if e != 0 || p == 0 {
				break
			}
			if p == pid {
				ws := unix.WaitStatus(status)
				if ws.Signaled() {
					exit(128 + int(ws.Signal()))
				}
				exit(ws.ExitStatus())
			}
		}
	}
}

// settle gives this process the capabilities that execve would have left.
func (c *Config) settle() *failure {
	set := c.CapPrm
	if c.UID != 0 {
		set = c.CapAmb
	}
	return capset(set, set&c.CapEff|c.CapAmb, c.CapInh)
}
