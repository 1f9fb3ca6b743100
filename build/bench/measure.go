//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/testkit"
)

// sample is one measurement: wall time, and CPU time of the virtual machine's
// process (zero where there is none).
type sample struct{ wall, cpu time.Duration }

// row is one thing that is measured, n times.
type row struct {
	name    string
	samples []sample
}

func (r *row) add(s sample) { r.samples = append(r.samples, s) }

func median(list []sample, of func(sample) time.Duration) time.Duration {
	if len(list) == 0 {
		return 0
	}
	v := make([]time.Duration, len(list))
	for i, s := range list {
		v[i] = of(s)
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func (r *row) wall() time.Duration {
	return median(r.samples, func(s sample) time.Duration { return s.wall })
}
func (r *row) cpu() time.Duration {
	return median(r.samples, func(s sample) time.Duration { return s.cpu })
}

func (r *row) least() time.Duration {
	return slices.MinFunc(r.samples, func(a, b sample) int { return int(a.wall - b.wall) }).wall
}

// clockTick is USER_HZ, the unit of CPU times in /proc, which is 100 on every
// architecture that Linux has.
const clockTick = 100

// processCPU returns the user and system time of a process, 0 if it is gone.
func processCPU(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(b, []byte(") "))
	f := strings.Fields(string(rest))
	var ticks int64
	for _, i := range []int{11, 12} { // utime, stime: proc(5) fields 14 and 15
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / clockTick
}

// childCPU is the CPU time of the QEMU that process ppid started.
func childCPU(ppid int) time.Duration { return processCPU(testkit.QEMUOf(ppid)) }
