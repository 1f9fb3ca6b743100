//go:build linux

package cgroup

import (
	"errors"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// keepName is the cgroup of HoldKeys, among the containers' (whose names are longer).
const keepName = "dhow-keep"

// HoldKeys makes an empty cgroup that has device rules and a CPU quota, until
// Close. The kernel has branches for both that it enables, by patching its own
// code under a stop of every CPU, for the first cgroup that needs them, and
// disables with the last: without this, a container that runs alone would pay
// for both at its start and at its end. (And QEMU before 8.1, emulating several
// CPUs, can hang on code that is patched while another CPU runs it.)
func (t *Tree) HoldKeys() error {
	c, err := t.Create(keepName)
	if err != nil {
		return err
	}
	t.keep = c
	err = c.AttachDevices([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}})
	if t.enabled["cpu"] {
		err = errors.Join(err, c.write("cpu.max", "100000 100000"))
	}
	return err
}

// releaseKeys undoes HoldKeys.
func (t *Tree) releaseKeys() error {
	if t.keep == nil {
		return nil
	}
	err := errors.Join(t.keep.Close(), os.Remove(t.keep.Path()))
	t.keep = nil
	return err
}
