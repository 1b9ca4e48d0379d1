package main

import (
	"encoding/json"
	"io"
	"path/filepath"

	"github.com/flowaudit/flowaudit/policy/lint"
)

// The parts of SARIF 2.1.0 (OASIS) that findings need.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool    sarifTool     `json:"tool"`
		Results []sarifResult `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name    string      `json:"name"`
		Version string      `json:"version"`
		Rules   []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID      string       `json:"id"`
		Short   sarifText    `json:"shortDescription"`
		Default sarifSetting `json:"defaultConfiguration"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifSetting struct {
		Level string `json:"level"`
	}
	sarifResult struct {
		RuleID    string          `json:"ruleId"`
		RuleIndex int             `json:"ruleIndex"`
		Level     string          `json:"level"`
		Message   sarifText       `json:"message"`
		Locations []sarifLocation `json:"locations,omitempty"`
	}
	sarifLocation struct {
		Physical *sarifPhysical `json:"physicalLocation,omitempty"`
		Logical  []sarifLogical `json:"logicalLocations,omitempty"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   *sarifRegion  `json:"region,omitempty"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine int `json:"startLine"`
	}
	sarifLogical struct {
		FullyQualifiedName string `json:"fullyQualifiedName"`
	}
)

// sarifLevel names a severity: SARIF says note for what is no warning.
func sarifLevel(s lint.Severity) string {
	if s == lint.Info {
		return "note"
	}
	return s.String()
}

func lintSARIF(w io.Writer, found []placed) error {
	run := sarifRun{Tool: sarifTool{sarifDriver{Name: "flowaudit", Version: version}}, Results: []sarifResult{}}
	index := make(map[string]int)
	for i, r := range lint.Rules() {
		index[r.Code] = i
		run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRule{r.Code, sarifText{r.Title}, sarifSetting{sarifLevel(r.Severity)}})
	}
	for _, f := range found {
		result := sarifResult{
			RuleID: f.Code, RuleIndex: index[f.Code], Level: sarifLevel(f.Severity), Message: sarifText{f.Message + ". Fix: " + f.Fix},
		}
		var l sarifLocation
		if f.File != "" && f.File != "-" {
			l.Physical = &sarifPhysical{Artifact: sarifArtifact{filepath.ToSlash(f.File)}}
			if f.Line > 0 {
				l.Physical.Region = &sarifRegion{f.Line}
			}
		}
		if name := f.object(); name != "" {
			if f.Field != "" {
				name += " " + f.Field
			}
			l.Logical = []sarifLogical{{name}}
		}
		if l.Physical != nil || l.Logical != nil {
			result.Locations = []sarifLocation{l}
		}
		run.Results = append(run.Results, result)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(sarifLog{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0", []sarifRun{run}})
}
