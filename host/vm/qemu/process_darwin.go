package qemu

import "syscall"

// attributes puts QEMU in a process group of its own, so that an interrupt at
// the terminal is ours to handle.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
