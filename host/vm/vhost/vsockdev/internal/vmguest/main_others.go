//go:build !linux

package main

func main() { panic("this program is PID 1 of a Linux machine") }
