// Command bench measures dhow beside the bare kernel and, if asked, beside
// another engine, in one run: the rows take turns, so that what else the
// computer does falls on all of them, and the result is medians and ratios.
// docs/benchmarks.md has the method and the figures.
//
// It drives the built programs and the QEMU driver from outside; nothing of
// dhow imports it.
package main
