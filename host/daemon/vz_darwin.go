//go:build cgo

package daemon

import (
	"dhow/host/vm"
	"dhow/host/vm/vz"
)

func newVZ(c vm.Config) (vm.Machine, error) { return vz.New(c), nil }
