//go:build unix

package daemon

import (
	"net"

	"dhow/host/config"
)

// listenDocker listens where docker clients of this system connect.
func listenDocker(l config.Layout) (net.Listener, error) { return listenUnix(l.DockerSocket()) }
