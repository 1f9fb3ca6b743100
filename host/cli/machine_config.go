package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"dhow/host/config"

	dockercli "github.com/docker/cli/cli"
	"github.com/spf13/cobra"
)

func machineConfig(e *engine) *cobra.Command {
	return &cobra.Command{
		Use:   "config [KEY[=VALUE]...]",
		Short: "Show or change the machine's settings",
		Long: "Show all settings, or the named ones; KEY=VALUE changes one, and KEY= sets it back to its default.\n" +
			"Changes take effect at the machine's next start. Settings: " + strings.Join(config.Keys(), ", ") + ".",
		Example: "  dhow machine config\n  dhow machine config cpus=4 memory=8g disk_size=100g",
		RunE: func(_ *cobra.Command, args []string) error {
			host := config.ThisHost()
			s, err := config.LoadFile(e.layout)
			if err != nil {
				return err
			}
			var show []string
			changed := false
			for _, a := range args {
				key, value, set := strings.Cut(a, "=")
				if !set {
					show = append(show, key)
					continue
				}
				if err := s.Set(key, value); err != nil {
					return dockercli.StatusError{Status: err.Error(), StatusCode: 125}
				}
				changed = true
			}
			if changed {
				if err := config.Save(e.layout, s, host); err != nil {
					return err
				}
			}
			if len(args) == 0 {
				show = config.Keys()
			}
			s = s.WithDefaults(host)
			w := tabwriter.NewWriter(e.docker.Out(), 0, 0, 2, ' ', 0)
			for _, key := range show {
				v, err := s.Get(key)
				if err != nil {
					return dockercli.StatusError{Status: err.Error(), StatusCode: 125}
				}
				if len(args) == 1 {
					fmt.Fprintln(w, v) // for scripts
				} else {
					fmt.Fprintf(w, "%s\t%s\n", key, v)
				}
			}
			return w.Flush()
		},
	}
}
