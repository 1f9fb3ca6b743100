//go:build linux

package test

import "testing"

// TestVM runs the scenarios that share one machine.
func TestVM(t *testing.T) {
	m := newMachine(t)
	t.Run("Debian", func(t *testing.T) { testDebian(m.in(t)) })
}
