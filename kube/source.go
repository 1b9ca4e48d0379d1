package kube

import (
	"strconv"
	"strings"
	"sync"

	yamlv3 "go.yaml.in/yaml/v3"
)

// source is a document and the file it is from. Its tree of lines is made when
// one is asked for: most never are.
type source struct {
	document
	file string
	once sync.Once
	tree *yamlv3.Node
}

// root is the document's tree; nil if it is no YAML.
func (s *source) root() *yamlv3.Node {
	s.once.Do(func() {
		var n yamlv3.Node
		if yamlv3.Unmarshal(s.text, &n) == nil && len(n.Content) > 0 {
			s.tree = n.Content[0]
		}
	})
	return s.tree
}

// place is where an object is: the path of a List's item ends with a dot.
type place struct {
	source *source
	path   string
	field  string // of the object, if a part of it is meant
}

// position gives the file and line of a field of the object.
func (p place) position(field string) (file string, line int) {
	file, line = p.source.file, p.source.line
	n := p.source.root()
	if n == nil {
		return file, line
	}
	if field == "" {
		field = p.field
	}
	if found := descend(n, strings.TrimSuffix(p.path+field, ".")); found > 0 {
		line += found - 1
	} else {
		line += n.Line - 1
	}
	return file, line
}

// descend follows a path as far as it goes, and gives the line of the last
// part that is there: of a field the line of its key.
func descend(n *yamlv3.Node, path string) (line int) {
	for _, part := range parts(path) {
		var at *yamlv3.Node
		at, n = child(n, part)
		if at == nil {
			return line
		}
		line = at.Line
	}
	return line
}

// parts splits spec.ingress[0].matchLabels[a.b/c] at dots and brackets.
func parts(path string) []string {
	var out []string
	for path != "" {
		if path[0] == '[' {
			inside, rest, ok := strings.Cut(path[1:], "]")
			if !ok {
				return out
			}
			out = append(out, "["+inside)
			path = strings.TrimPrefix(rest, ".")
			continue
		}
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			return append(out, path)
		}
		out = append(out, path[:end])
		path = strings.TrimPrefix(path[end:], ".")
	}
	return out
}

// child finds a field, a list's item or a map's key: the node that shows where
// it is, and its value.
func child(n *yamlv3.Node, part string) (at, value *yamlv3.Node) {
	for n != nil && n.Kind == yamlv3.AliasNode {
		n = n.Alias
	}
	name, bracket := strings.CutPrefix(part, "[")
	switch {
	case n == nil:
	case n.Kind == yamlv3.SequenceNode && bracket:
		if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i], n.Content[i]
		}
	case n.Kind == yamlv3.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == name {
				return n.Content[i], n.Content[i+1]
			}
		}
	}
	return nil, nil
}

// mismatch looks below the object for a field whose path has no indexes, as
// errors of types name it, and which holds a value of a kind of JSON. It gives
// the path with indexes, and the line.
func (p place) mismatch(field, kind string) (path string, line int) {
	_, line = p.position("")
	n := p.source.root()
	for _, part := range parts(strings.TrimSuffix(p.path, ".")) {
		_, n = child(n, part)
	}
	if found, at := search(n, parts(field), kind); at > 0 {
		return strings.TrimPrefix(found, "."), p.source.line + at - 1
	}
	return field, line
}

// search goes through every item of a list that has no index in the path.
func search(n *yamlv3.Node, path []string, kind string) (found string, line int) {
	for n != nil && n.Kind == yamlv3.AliasNode {
		n = n.Alias
	}
	if n == nil {
		return "", 0
	}
	if len(path) == 0 && jsonKind(n) == strings.Fields(kind)[0] {
		return "", n.Line
	}
	switch n.Kind {
	case yamlv3.SequenceNode:
		for i, item := range n.Content {
			if rest, at := search(item, path, kind); at > 0 {
				return "[" + strconv.Itoa(i) + "]" + rest, at
			}
		}
	case yamlv3.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			rest := path
			if len(path) > 0 {
				if n.Content[i].Value != path[0] {
					continue
				}
				rest = path[1:]
			}
			if below, at := search(n.Content[i+1], rest, kind); at > 0 {
				return "." + n.Content[i].Value + below, at
			}
		}
	}
	return "", 0
}

// jsonKind names a node as errors of JSON do.
func jsonKind(n *yamlv3.Node) string {
	switch n.Kind {
	case yamlv3.MappingNode:
		return "object"
	case yamlv3.SequenceNode:
		return "array"
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "number"
	case "!!bool":
		return "bool"
	}
	return "string"
}
