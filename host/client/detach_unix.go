//go:build unix

package client

import (
	"os/exec"
	"syscall"
)

// detach makes cmd leave the caller's session: no signal of its terminal, and
// no hang-up, reaches it.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
