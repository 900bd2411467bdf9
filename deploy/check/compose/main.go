// Loads Compose files as docker compose does, with the same library, and prints the services that would start: for machines without it.
//
//	compose-services [-f FILE]… [-profile NAME]…
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"

	"github.com/compose-spec/compose-go/v2/cli"
)

type list []string

func (l *list) String() string         { return fmt.Sprint(*l) }
func (l *list) Set(value string) error { *l = append(*l, value); return nil }

func main() {
	var files, profiles list
	flag.Var(&files, "f", "Compose file; several are merged")
	flag.Var(&profiles, "profile", "profile in force; none means COMPOSE_PROFILES")
	flag.Parse()
	if err := run(files, profiles); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(files, profiles []string) error {
	options, err := cli.NewProjectOptions(files,
		cli.WithOsEnv,
		cli.WithEnvFiles(),
		cli.WithDotEnv,
		cli.WithDefaultConfigPath,
		cli.WithDefaultProfiles(profiles...),
	)
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	names := project.ServiceNames()
	slices.Sort(names)
	for _, name := range names {
		fmt.Println(name)
	}
	return nil
}
