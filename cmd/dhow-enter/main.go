//go:build linux

package main

import "dhow/guest/runtime/enter"

func main() { enter.Main() }
