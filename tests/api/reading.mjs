// Reads texts, one a line in base64, as a browser does and as the dashboard does; one verdict a line, "ok" when both read the same.

import { createInterface } from "node:readline";

const { parse } = await import(process.argv[2]);

function plain(value) {
  if (value instanceof Map) return Object.fromEntries([...value].map(([name, member]) => [name, plain(member)]));
  if (Array.isArray(value)) return value.map(plain);
  return typeof value === "bigint" ? Number(value) : value;
}

function isFinite(value) {
  if (typeof value === "number") return Number.isFinite(value);
  return value === null || typeof value !== "object" || Object.values(value).every(isFinite);
}

function sorted(value) {
  return JSON.stringify(value, (_, member) =>
    member !== null && typeof member === "object" && !Array.isArray(member)
      ? Object.fromEntries(Object.entries(member).sort())
      : member,
  );
}

for await (const line of createInterface({ input: process.stdin })) {
  const text = Buffer.from(line, "base64").toString("utf8");
  let verdict = "ok";
  try {
    const value = JSON.parse(text);
    if (!isFinite(value)) verdict = "a number that a browser reads as infinite";
    else if (sorted(plain(parse(text))) !== sorted(value)) verdict = "the two readers differ";
  } catch (error) {
    verdict = String(error);
  }
  console.log(verdict);
}
