//go:build linux

package test

import (
	"path/filepath"
	"testing"
)

// TestVM runs the scenarios that share one machine: all but the last leave it
// as they found it, and running.
func TestVM(t *testing.T) {
	m := newMachine(t)
	m.ok("machine", "start")
	clients := map[string]string{"dhow": filepath.Join(m.bin, "dhow"), "docker": stockDocker(t)}
	for name, cli := range clients {
		t.Run("Scripts/"+name, func(t *testing.T) { testScripts(m.in(t), cli) })
		t.Run("Terminal/"+name, func(t *testing.T) { testTerminal(m.in(t), cli) })
	}
	t.Run("Debian", func(t *testing.T) { testDebian(m.in(t)) })
	t.Run("Errors", func(t *testing.T) { testErrors(m.in(t)) })
	t.Run("VsockIsClosed", func(t *testing.T) { testVsockIsClosed(m.in(t)) })
	t.Run("Outside", func(t *testing.T) { testOutside(m.in(t)) })
	t.Run("Restart", func(t *testing.T) { testRestart(m.in(t)) })
	t.Run("PowerCut", func(t *testing.T) { testPowerCut(m.in(t)) })
	t.Run("KilledDaemon", func(t *testing.T) { testKilledDaemon(m.in(t)) })
}
