//go:build !linux && !darwin

package qemu

import "syscall"

func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
