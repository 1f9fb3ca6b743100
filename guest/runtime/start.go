//go:build linux

package runtime

import (
	"context"

	"dhow/internal/errdefs"
)

// Start lets the container's program be executed, and returns when it is. An
// *ExecError says that execve failed; the process is then gone, and the
// container remains to be deleted.
func (c *Container) Start(ctx context.Context) error {
	c.mu.Lock()
	started := c.started
	c.started = true
	c.mu.Unlock()
	if started {
		return errdefs.New(errdefs.Conflict, "container %s has been started already", c.id)
	}
	err := c.release()
	if err == nil {
		err = c.await(ctx, 0)
	} else {
		err = c.controlError(ctx, err)
	}
	if err != nil {
		c.kill()
		<-c.done
	}
	_ = c.control.Close()
	return err
}
