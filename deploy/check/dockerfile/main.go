// Reads a Dockerfile with BuildKit's own parser and linter: for machines without a Docker engine.
//
//	dockerfile-check FILE
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: dockerfile-check FILE")
		os.Exit(64)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func run(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	parsed, err := parser.Parse(file)
	if err != nil {
		return err
	}
	var problems []error
	for _, warning := range parsed.Warnings {
		problems = append(problems, errors.New(warning.Short))
	}
	lint := linter.New(&linter.Config{Warn: func(rule, _, _, message string, at []parser.Range) {
		problems = append(problems, fmt.Errorf("line %d: %s: %s", at[0].Start.Line, rule, message))
	}})
	stages, _, err := instructions.Parse(parsed.AST, lint)
	if err != nil {
		return err
	}
	var names []string
	for _, stage := range stages {
		kinds := []string{}
		for _, command := range stage.Commands {
			kinds = append(kinds, strings.ToUpper(command.Name()))
			// Options of mounts are read where variables are put in.
			if expands, is := command.(instructions.SupportsSingleWordExpansion); is {
				if err := expands.Expand(func(word string) (string, error) { return word, nil }); err != nil {
					problems = append(problems, fmt.Errorf("line %d: %w", command.Location()[0].Start.Line, err))
				}
			}
			if copied, is := command.(*instructions.CopyCommand); is && copied.From != "" && !slices.Contains(names, copied.From) {
				problems = append(problems, fmt.Errorf("line %d: no stage is named %s", copied.Location()[0].Start.Line, copied.From))
			}
		}
		names = append(names, stage.Name)
		fmt.Printf("FROM %s: %s\n", stage.BaseName, strings.Join(kinds, " "))
	}
	return errors.Join(problems...)
}
