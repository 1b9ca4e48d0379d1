package rest

import (
	"bytes"
	"encoding/json"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

func compactJSON(to *bytes.Buffer, from []byte) error { return json.Compact(to, from) }

// object is a JSON object.
type object = map[string]any

// openAPI describes methods in OpenAPI 3.1.
func openAPI(methods []protoreflect.MethodDescriptor) ([]byte, error) {
	schemas := make(object)
	paths := make(object)
	for _, m := range methods {
		kind := "application/json"
		if m.IsStreamingServer() {
			kind = "application/x-ndjson"
		}
		content := func(kind string, d protoreflect.MessageDescriptor) object {
			return object{kind: object{"schema": reference(d, schemas)}}
		}
		paths[path(string(m.Name()))] = object{"post": object{
			"operationId": string(m.Name()),
			"requestBody": object{"content": content("application/json", m.Input())},
			"responses": object{
				"200": object{"description": answerText(m), "content": content(kind, m.Output())},
				"default": object{"description": "What is wrong: code is gRPC's, message is for people.", "content": object{
					"application/json": object{"schema": object{"type": "object", "properties": object{"code": object{"type": "integer"}, "message": object{"type": "string"}}}},
				}},
			},
		}}
	}
	return json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info":    object{"title": "flowaudit", "version": "v1", "description": "Who talked to whom, who was refused, and how sure that is. Made from the protocol's definition."},
		"paths":   paths, "components": object{"schemas": schemas},
	}, "", "  ")
}

func answerText(m protoreflect.MethodDescriptor) string {
	if m.IsStreamingServer() {
		return "One " + string(m.Output().Name()) + " a line; the last line is an error where one ended the answer."
	}
	return "One " + string(m.Output().Name()) + "."
}

// reference names a message's schema, and puts it among the schemas.
func reference(d protoreflect.MessageDescriptor, schemas object) object {
	switch d.FullName() {
	case "google.protobuf.Value":
		return object{}
	case "google.protobuf.ListValue":
		return object{"type": "array"}
	case "google.protobuf.Struct":
		return object{"type": "object"}
	case "google.protobuf.Timestamp", "google.protobuf.Duration":
		return object{"type": "string"}
	}
	name := strings.ReplaceAll(strings.TrimPrefix(string(d.FullName()), string(d.ParentFile().Package())+"."), ".", "")
	if _, known := schemas[name]; !known {
		schemas[name] = object{} // a message may hold itself
		properties := make(object)
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			properties[f.JSONName()] = fieldSchema(f, schemas)
		}
		schemas[name] = object{"type": "object", "properties": properties}
	}
	return object{"$ref": "#/components/schemas/" + name}
}

func fieldSchema(f protoreflect.FieldDescriptor, schemas object) object {
	switch {
	case f.IsMap():
		return object{"type": "object", "additionalProperties": valueSchema(f.MapValue(), schemas)}
	case f.IsList():
		return object{"type": "array", "items": valueSchema(f, schemas)}
	}
	return valueSchema(f, schemas)
}

// valueSchema follows protobuf's JSON mapping: 64-bit numbers are strings.
func valueSchema(f protoreflect.FieldDescriptor, schemas object) object {
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return reference(f.Message(), schemas)
	case protoreflect.EnumKind:
		var names []string
		for i := range f.Enum().Values().Len() {
			names = append(names, string(f.Enum().Values().Get(i).Name()))
		}
		return object{"type": "string", "enum": names}
	case protoreflect.BoolKind:
		return object{"type": "boolean"}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return object{"type": "number"}
	case protoreflect.StringKind:
		return object{"type": "string"}
	case protoreflect.BytesKind:
		return object{"type": "string", "contentEncoding": "base64"}
	case protoreflect.Int64Kind, protoreflect.Uint64Kind, protoreflect.Sint64Kind, protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind:
		return object{"type": "string", "pattern": "^-?[0-9]+$"}
	}
	return object{"type": "integer"}
}
