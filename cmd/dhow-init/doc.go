//go:build linux

// Command dhow-init is PID 1 of a dhow machine (see dhow/guest/boot); called
// as modprobe it loads modules for the kernel.
package main
