package cli

import (
	"errors"
	"fmt"

	"github.com/docker/cli/cli/command"
	"github.com/moby/moby/client/pkg/versions"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// supported refuses a command or a flag that the engine is too old for, by the
// annotations that docker's commands carry. It asks the engine only where there
// is such an annotation.
func supported(cmd *cobra.Command, docker command.Cli) error {
	for c := cmd; c != nil; c = c.Parent() {
		if want, ok := c.Annotations["version"]; ok && versions.LessThan(docker.CurrentVersion(), want) {
			return fmt.Errorf("%s requires API version %s, but the Docker daemon API version is %s", cmd.CommandPath(), want, docker.CurrentVersion())
		}
		if want, ok := c.Annotations["ostype"]; ok && docker.ServerInfo().OSType != "" && docker.ServerInfo().OSType != want {
			return fmt.Errorf("%s is only supported on a Docker daemon running on %s, but the Docker daemon is running on %s", cmd.CommandPath(), want, docker.ServerInfo().OSType)
		}
	}
	var errs []error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if want := annotation(f, "version"); want != "" && versions.LessThan(docker.CurrentVersion(), want) {
			errs = append(errs, fmt.Errorf(`"--%s" requires API version %s, but the Docker daemon API version is %s`, f.Name, want, docker.CurrentVersion()))
		} else if want := annotation(f, "ostype"); want != "" && docker.ServerInfo().OSType != "" && docker.ServerInfo().OSType != want {
			errs = append(errs, fmt.Errorf(`"--%s" is only supported on a Docker daemon running on %s, but the Docker daemon is running on %s`, f.Name, want, docker.ServerInfo().OSType))
		}
	})
	return errors.Join(errs...)
}

func annotation(f *pflag.Flag, name string) string {
	if v := f.Annotations[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// guardArgs makes an unsupported command say so before it complains of its
// arguments: cobra checks those before PersistentPreRunE.
func guardArgs(cmd *cobra.Command, docker command.Cli) {
	for _, c := range cmd.Commands() {
		guardArgs(c, docker)
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				if serr := supported(c, docker); serr != nil {
					return serr
				}
				return err
			}
			return nil
		}
	}
}
