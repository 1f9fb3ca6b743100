package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"dhow/host/config"
	"dhow/internal/version"

	cerrdefs "github.com/containerd/errdefs"
	dockercli "github.com/docker/cli/cli"
	pluginmanager "github.com/docker/cli/cli-plugins/manager"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/commands"
	cliversion "github.com/docker/cli/cli/version"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

// unserved are docker's commands that dhow leaves out: a laptop's machine is
// no swarm, runs no engine plugins and takes no checkpoints.
var unserved = map[string]bool{
	"swarm": true, "node": true, "service": true, "stack": true, "config": true, "secret": true,
	"plugin": true, "checkpoint": true,
}

// Main runs the command line args (without the program's name) and returns the
// exit code: docker's own codes, 1 for any other failure, 128+n where signal n
// ended it. Messages go to errOut.
func Main(ctx context.Context, args []string, errOut io.Writer) int {
	ctx, stop := notifyTermination(ctx)
	defer stop()
	err := run(ctx, args)
	code := exitCode(ctx, err)
	if err != nil && !cerrdefs.IsCanceled(err) && context.Cause(ctx) == nil && err.Error() != "" {
		fmt.Fprintln(errOut, err)
	}
	return code
}

func run(ctx context.Context, args []string) error {
	cliversion.Version, cliversion.GitCommit, cliversion.BuildTime = version.Version, version.Commit, ""
	layout, err := useOwnEngine()
	if err != nil {
		return err
	}
	docker, err := command.NewDockerCli(command.WithBaseContext(ctx))
	if err != nil {
		return err
	}
	logrus.SetOutput(docker.Err()) // docker's packages log through it
	eng := &engine{layout: layout, docker: docker}

	top := newRoot(docker, eng)
	top.SetArgs(args)
	root, args, err := top.HandleGlobalFlags()
	if err != nil {
		return err
	}
	var opts []command.CLIOption
	if !otherEngine(root) {
		opts = append(opts, command.WithAPIClientOptions(eng.clientOption()))
		// The library read DOCKER_TLS and DOCKER_TLS_VERIFY before we could unset them.
		for _, flag := range []string{"tls", "tlsverify"} {
			if f := root.Flags().Lookup(flag); !f.Changed {
				if err := f.Value.Set("false"); err != nil {
					return err
				}
			}
		}
	}
	if err := top.Initialize(opts...); err != nil {
		return err
	}
	if isCompletion(args) {
		if err := pluginmanager.AddPluginCommandStubs(docker, root); err != nil {
			return err
		}
	}
	if len(args) > 0 {
		if cmd, _, err := root.Find(args); err != nil || pluginmanager.IsPluginCommand(cmd) {
			// A plugin is a program of its own and cannot boot the machine at its first
			// connection, so the machine is booted for it.
			err := runPlugin(ctx, docker, root, args[0], func() error { return eng.ensure(ctx) })
			if !cerrdefs.IsNotFound(err) {
				return err
			} // no such plugin: cobra says so below
		}
	}
	go exitOnThirdSignal(ctx, docker)
	root.SetArgs(args)
	return eng.explain(root.ExecuteContext(ctx))
}

func newRoot(docker *command.DockerCli, eng *engine) *dockercli.TopLevelCommand {
	root := &cobra.Command{
		Use:              "dhow [OPTIONS] COMMAND [ARG...]",
		Short:            "Linux containers on your laptop",
		SilenceUsage:     true,
		SilenceErrors:    true,
		TraverseChildren: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return command.ShowHelp(docker.Err())(cmd, args)
			}
			return fmt.Errorf("dhow: unknown command: dhow %s\n\nRun 'dhow --help' for more information", args[0])
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return supported(cmd, docker) },
		Version:           fmt.Sprintf("%s, build %s", version.Version, version.Commit),
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},

		DisableFlagsInUseLine: true,
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetIn(docker.In())
	root.SetOut(docker.Out())
	root.SetErr(docker.Err())

	opts, help := dockercli.SetupRootCommand(root)
	root.SetVersionTemplate("dhow version {{.Version}}\n")
	root.Annotations["additionalHelp"] = "The machine that runs the containers starts by itself: see 'dhow machine --help'."
	root.Flags().BoolP("version", "v", false, "Print version information and quit")
	helpWithPlugins(docker, root, help)

	commands.AddCommands(root, docker)
	for _, c := range root.Commands() {
		if unserved[c.Name()] {
			root.RemoveCommand(c)
		}
	}
	root.AddCommand(machineCommand(eng))
	guardArgs(root, docker)
	return dockercli.NewTopLevelCommand(root, docker, opts, root.Flags())
}

// otherEngine reports whether the user named an engine other than ours.
func otherEngine(root *cobra.Command) bool {
	return root.Flags().Changed("host") || root.Flags().Changed("context")
}

func isCompletion(args []string) bool {
	return len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd)
}

// useOwnEngine points docker's client library, and the plugins that inherit
// our environment, at our socket: whatever engine the user's docker command is
// set to (DOCKER_HOST, the current context) is not what `dhow` means. -H and
// --context still win.
func useOwnEngine() (config.Layout, error) {
	l, err := config.NewLayout("", os.Getenv("DHOW_MACHINE"))
	if err != nil {
		return l, err
	}
	for _, name := range []string{"DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"} {
		if err := os.Unsetenv(name); err != nil {
			return l, err
		}
	}
	return l, os.Setenv("DOCKER_HOST", "unix://"+l.DockerSocket())
}
