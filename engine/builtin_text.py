"""The text that the built-in tokenizer is trained on, written for this project."""

TEXT = """\
The following are multiple choice questions (with answers) about the history of science.

Question: Which of these is the best reason for a planet to have seasons?
A. The planet moves faster when it is near the sun.
B. The axis of the planet is tilted against its orbit.
C. The sun gives less light in the winter.
D. All of the above.
Answer: B

Question: What is the sum of 12 and 34, and what is the product of 5 and 6?
A. 46 and 30
B. 46 and 11
C. 22 and 30
D. None of these
Answer: A

A cache keeps what was computed before, so that the same work isn't done again. When a new request arrives, the server
looks for the longest prefix of its prompt that is in the tree, locks it, and computes only the rest. When there is no
more room, something has to go: the policy says which leaf is evicted first. The one that was used least recently is a
good choice when programs come back to what they have just seen; the one that was used least often may be better when a
few prompts are shared by everybody and the others are never seen again.

Once there was a woman who lived in a small house at the end of a long road. Every morning she walked to the river with
her two dogs and a basket, and every evening she came home with the basket full of stones. "What do you want with all
of these stones?" asked the children of the village. "I am building a wall," she said, "and when it is finished, you
will know why." They thought that she was strange, but they liked her, and sometimes they helped her to carry the
stones. In the third year there was a great storm. The water of the river rose over the fields and the roads, and it
would have taken the village too, if there hadn't been a wall.

A man is standing in the kitchen. He takes a knife and starts cutting the tomatoes into small pieces. Then he puts them
into a pan with some oil, salt and pepper. He then stirs the sauce for about ten minutes, while the water for the
noodles is boiling. She is shown sitting on a bench, talking to the camera. Someone is seen running on the field and
throwing the ball. The people around them are cheering, and the video ends with the players shaking hands.

    def add(left: int, right: int) -> int:
        return left + right

    for i in range(10):
        if values[i] is None:
            print("no value at", i)
        else:
            total = add(total, values[i])

{"name": "Paris", "country": "France", "population": 2100000, "rivers": ["Seine"], "capital": true, "notes": null}
{"name": "Quito", "country": "Ecuador", "population": 1900000, "rivers": [], "capital": true, "notes": "high up"}

Thought: I need to search for the first person, then find the year in which they were born.
Action: Search[the inventor of the telephone]
Observation: The telephone was patented in 1876. There were several inventors who had worked on the same idea.
Thought: The question asks for the person with the patent, so I should look that up next.
Action: Finish[1847]

System: You are a helpful assistant. Please answer the user's question in one or two sentences, and say so when you
don't know the answer.
User: How does a computer know which word comes next?
Assistant: It doesn't know. For every word that it could say it computes a number, turns the numbers into probabilities,
and takes one of the likely words; then it does the same again with that word added to the text.

Statement 1: If the demand for a good rises while its supply does not change, then its price will increase.
Statement 2: A government that spends more than it receives from taxes has to borrow the difference or print money.
According to the law, a contract is an agreement between two or more parties. The court held that the defendant was not
liable, because the plaintiff had not shown that the injury was caused by the defendant's action. The patient presents
with pain in the chest and a history of high blood pressure; the most likely diagnosis would be an inflammation of the
heart. In chemistry, the number of protons determines the element, and the electrons determine how it reacts with the
others. Let f(x) = 2x + 3 and g(x) = x^2 - 1. Find the value of f(g(2)). An international organization, a political
system, an economic function, the development of the nervous system, the theory of evolution, the relation between
religion and the state, the production of energy, and the structure of society have all been the subject of questions.
"""
