// What can go wrong between the page and a classifier: a sentence for people, and a kind for the page.
export class Failure extends Error {
  constructor(kind, message, { predictions = null, wait = 0 } = {}) {
    super(message);
    this.kind = kind;
    this.predictions = predictions;
    this.wait = wait; // seconds
  }
}
