//go:build linux

package main

import (
	"os"
	"strings"

	"dhow/guest/boot"
)

func main() {
	if strings.HasSuffix(os.Args[0], "modprobe") {
		os.Exit(boot.Modprobe(os.Args[1:]))
	}
	if os.Getpid() != 1 {
		_, _ = os.Stderr.WriteString("dhow-init is the first process of a dhow machine and does nothing elsewhere\n")
		os.Exit(1)
	}
	boot.Run()
}
