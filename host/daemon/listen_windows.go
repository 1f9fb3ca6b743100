package daemon

import (
	"net"

	"dhow/host/config"
)

// listenDocker listens where docker clients of this system connect: for now a
// unix socket, which our own CLI uses; stock clients want a named pipe.
func listenDocker(l config.Layout) (net.Listener, error) { return listenUnix(l.DockerSocket()) }
