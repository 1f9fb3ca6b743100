//go:build !linux

package qemu

import "syscall"

func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
