package qemu

import "syscall"

// attributes puts QEMU in a process group of its own, so that an interrupt at
// the terminal is ours to handle, and has the kernel kill it when we die.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
