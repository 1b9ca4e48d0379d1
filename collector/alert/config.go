package alert

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Config is a file of rules and notifiers.
type Config struct {
	Rules []*Rule
	// Notifiers are read by package notify.
	Notifiers []*yaml.Node
	// LinkTemplate makes an alert's link, a text/template over the Alert.
	LinkTemplate string
	Grafana      string // its URL, for the default LinkTemplate
	RunbookURL   string // where the runbooks of the default rules are
	// Problems are what of the file cannot be used. The rest is.
	Problems []Problem
}

// Problem is something in a file that cannot be used.
type Problem struct {
	Line int    // 0 if the whole file
	Of   string // "rule port-scan", "notifier slack"; may be empty
	Text string
}

// String is the problem in one line.
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Of != "" {
		b.WriteString(p.Of + ": ")
	}
	return b.String() + p.Text
}

// file is the outline of what is parsed.
type file struct {
	Learning Duration    `yaml:"learning"`
	Defaults *bool       `yaml:"default_rules"`
	Link     string      `yaml:"link_template"`
	Grafana  string      `yaml:"grafana"`
	Runbooks string      `yaml:"runbook_url"`
	Rules    []yaml.Node `yaml:"rules"`
	// Notifiers are mappings whose key "type" says what the others are.
	Notifiers []yaml.Node `yaml:"notifiers"`
}

// defaultLearning is how much must have been watched before an edge is new.
const defaultLearning = Duration(24 * time.Hour)

// Parse reads rules and notifiers over the default rules. A rule with the name
// of a default one changes what it names of it. What cannot be used is a
// Problem of the result; the other rules and notifiers are there.
func Parse(text []byte) *Config {
	c := &Config{}
	f := file{Learning: defaultLearning}
	root, err := document(text)
	if err != nil {
		c.problem(0, "", "%s", yamlError(err))
	} else if root != nil {
		c.Problems = append(c.Problems, Decode(root, &f, "")...)
	}
	c.LinkTemplate, c.Grafana, c.RunbookURL = f.Link, strings.TrimRight(f.Grafana, "/"), f.Runbooks
	if f.Defaults == nil || *f.Defaults {
		c.Rules = defaultRules()
	}
	for i := range f.Rules {
		c.rule(&f.Rules[i])
	}
	for i := range f.Notifiers {
		c.Notifiers = append(c.Notifiers, &f.Notifiers[i])
	}
	c.check(f.Learning)
	return c
}

func (c *Config) problem(line int, of, format string, args ...any) {
	c.Problems = append(c.Problems, Problem{line, of, fmt.Sprintf(format, args...)})
}

func document(text []byte) (*yaml.Node, error) {
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, err
	}
	if err := d.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("want one YAML document")
	}
	return doc.Content[0], nil
}

func yamlError(err error) string { return strings.TrimPrefix(err.Error(), "yaml: ") }

// rule reads a rule, onto the default one of its name.
func (c *Config) rule(n *yaml.Node) {
	name := field(n, "name")
	of := "rule " + name
	if name == "" {
		c.problem(n.Line, "rule", "has no name")
		return
	}
	at := slices.IndexFunc(c.Rules, func(r *Rule) bool { return r.Name == name })
	r := &Rule{}
	if at >= 0 {
		if c.Rules[at].line > 0 {
			c.problem(n.Line, of, "there is a rule of this name at line %d", c.Rules[at].line)
			return
		}
		*r = *c.Rules[at]
		r.Count = clone(r.Count)
	}
	if problems := Decode(n, r, of); len(problems) > 0 {
		c.Problems = append(c.Problems, problems...)
		return // a default rule stays as it is
	}
	r.line = n.Line
	if at >= 0 {
		c.Rules[at] = r
	} else {
		c.Rules = append(c.Rules, r)
	}
}

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	return new(*p)
}

// field is the value of a scalar key of a mapping.
func field(n *yaml.Node, key string) string {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1].Value
			}
		}
	}
	return ""
}

// check completes the rules, and leaves out those that cannot work.
func (c *Config) check(learning Duration) {
	kept := c.Rules[:0]
	for _, r := range c.Rules {
		of := "rule " + r.Name
		r.complete(learning)
		texts := r.validate()
		if _, err := compile(r); err != nil {
			texts = append(texts, err.Error())
		}
		for _, t := range texts {
			c.problem(r.line, of, "%s", t)
		}
		if len(texts) == 0 && r.IsEnabled() {
			kept = append(kept, r)
		}
	}
	c.Rules = kept
	for _, r := range c.Rules {
		for _, u := range r.Unless {
			if !slices.ContainsFunc(c.Rules, func(o *Rule) bool { return o.Name == u }) && r.line > 0 {
				c.problem(r.line, "rule "+r.Name, "unless: there is no rule %q", u)
			}
		}
	}
	if _, err := parseTemplate("link_template", c.link()); err != nil {
		c.problem(0, "link_template", "%v", err)
		c.LinkTemplate = ""
	}
}

// Decode reads a node into a struct, whose fields have yaml tags. Unlike the
// YAML package it says the line of a key that is not known.
func Decode(n *yaml.Node, into any, of string) []Problem {
	if problems := unknownFields(n, reflect.TypeOf(into), of); len(problems) > 0 {
		return problems
	}
	err := n.Decode(into)
	if err == nil {
		return nil
	}
	var typed *yaml.TypeError
	if !errors.As(err, &typed) {
		return []Problem{{n.Line, of, yamlError(err)}}
	}
	var out []Problem
	for _, text := range typed.Errors {
		p := Problem{n.Line, of, text}
		if at, rest, ok := strings.Cut(strings.TrimPrefix(text, "line "), ": "); ok {
			if line, err := strconv.Atoi(at); err == nil {
				p.Line, p.Text = line, rest
			}
		}
		out = append(out, p)
	}
	return out
}

func unknownFields(n *yaml.Node, t reflect.Type, of string) []Problem {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if t == reflect.TypeFor[yaml.Node]() {
		return nil
	}
	var out []Problem
	switch {
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		for _, item := range n.Content {
			out = append(out, unknownFields(item, t.Elem(), of)...)
		}
	case t.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		fields := make(map[string]reflect.Type)
		var names []string
		for i := range t.NumField() {
			if tag := t.Field(i).Tag.Get("yaml"); tag != "" {
				fields[tag] = t.Field(i).Type
				names = append(names, tag)
			}
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			ft, known := fields[key.Value]
			if !known {
				out = append(out, Problem{key.Line, of, fmt.Sprintf("there is no field %q: want one of %s", key.Value, strings.Join(names, ", "))})
				continue
			}
			out = append(out, unknownFields(n.Content[i+1], ft, of)...)
		}
	}
	return out
}

// UnmarshalYAML reads 30s, 10m, 24h or 7d.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	text := n.Value
	if days, ok := strings.CutSuffix(text, "d"); ok {
		v, err := strconv.ParseFloat(days, 64)
		if err == nil && v >= 0 && v <= 100_000 {
			*d = Duration(v * 24 * float64(time.Hour))
			return nil
		}
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %q is no duration: want such as 30s, 10m, 24h or 7d", n.Line, text)}}
	}
	*d = Duration(v)
	return nil
}
