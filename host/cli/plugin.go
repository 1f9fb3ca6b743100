package cli

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	dockercli "github.com/docker/cli/cli"
	pluginmanager "github.com/docker/cli/cli-plugins/manager"
	"github.com/docker/cli/cli-plugins/socket"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// runPlugin runs the docker CLI plugin that serves the command name (compose,
// buildx, …) with the program's own arguments. before is called once the
// plugin is found. The error satisfies cerrdefs.IsNotFound if there is no such
// plugin, and is a StatusError with the plugin's exit code if it failed.
func runPlugin(ctx context.Context, docker *command.DockerCli, root *cobra.Command, name string, before func() error) error {
	cmd, err := pluginmanager.PluginRunCommand(docker, name, root)
	if err != nil {
		return err
	}
	if err := before(); err != nil {
		return err
	}
	// The plugin ends when this socket does: the library's way to pass on a signal.
	srv, err := socket.NewPluginServer(nil)
	if err == nil {
		defer srv.Close()
		cmd.Env = append(cmd.Env, socket.EnvKey+"="+srv.Addr().String())
		// On a terminal the plugin is in our process group and gets the signal itself.
		if !docker.Out().IsTerminal() {
			defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
		}
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return dockercli.StatusError{StatusCode: exit.ExitCode()}
	}
	return err
}

// helpWithPlugins makes help list the plugins, and hand over to a plugin for
// help on its own command.
func helpWithPlugins(docker *command.DockerCli, root, help *cobra.Command) {
	noop := func() error { return nil }
	plain := help.RunE
	help.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			err := runPlugin(c.Context(), docker, root, args[0], noop)
			if err == nil {
				return nil
			}
			if !cerrdefs.IsNotFound(err) {
				return fmt.Errorf("unknown help topic: %s", strings.Join(args, " "))
			}
		}
		return plain(c, args)
	}
	show := root.HelpFunc()
	root.SetHelpFunc(func(c *cobra.Command, args []string) {
		if err := pluginmanager.AddPluginCommandStubs(docker, root); err != nil {
			c.PrintErrln(err)
			return
		}
		if len(args) > 0 {
			if cmd, _, err := root.Traverse(args); err == nil && pluginmanager.IsPluginCommand(cmd) {
				if err := runPlugin(c.Context(), docker, root, cmd.Name(), noop); err != nil {
					c.PrintErrln(err)
				}
				return
			}
		}
		show(c, args)
	})
}
