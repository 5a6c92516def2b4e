"""The texts for the quality measurement: prose, dialogue, code, data and three languages, written for this project.

About 5,000 tokens in all. A change here changes every published figure.
"""

TEXTS = (
    "The ferry left the island a little after six, when the lamps along the harbour were still lit. Marta "
    "stood at the rail with her coat buttoned to the chin and watched the houses grow small. She had lived "
    "there for nine years, first with her aunt and then alone, and she knew every window that she could see: "
    "the baker's, which was never dark, the schoolmaster's, which was dark until noon on Saturdays, and the "
    "narrow one above the chandler's shop where somebody practised the violin. A boy beside her was throwing "
    'crusts to the gulls. "Are you coming back?" he asked, without looking at her. She thought about it '
    'longer than the question deserved. "In the spring," she said at last, "if the letter says what I hope it'
    ' says." The boy nodded, as if this were the most ordinary answer in the world, and threw the last crust '
    "as far as he could.",
    "Photosynthesis is the process by which plants, algae and some bacteria turn light into chemical energy. "
    "In the leaves of a plant, chlorophyll absorbs mostly red and blue light and reflects green, which is why"
    " leaves look green to us. The absorbed energy splits water molecules into oxygen, protons and electrons."
    " The oxygen leaves through small openings called stomata, while the electrons and protons are used to "
    "build two carrier molecules, ATP and NADPH. In a second stage, known as the Calvin cycle, the plant uses"
    " these carriers to fix carbon dioxide from the air into sugars. The cycle does not need light directly, "
    "but it stops soon after dark because the carriers run out. Temperature, the amount of water and the "
    "concentration of carbon dioxide all limit how fast the whole process can run, and plants in dry places "
    "have evolved several ways to lose less water while they take in carbon.",
    "User: My laptop gets very hot when I have a video call, and the fan is loud. What can I do?\n"
    "Assistant: There are a few things you can try, starting with the simplest:\n"
    "1. Close other programs and browser tabs, because each of them uses some of the processor.\n"
    "2. Put the laptop on a hard, flat surface. On a bed or a sofa the air intake is often blocked.\n"
    "3. Lower the quality of your camera in the settings of the call, for example from 1080p to 720p.\n"
    "4. Turn off background effects. Blurring the background is surprisingly expensive.\n"
    "5. If the laptop is more than two or three years old, clean the fan with compressed air.\n"
    "If it still gets hot, open the system monitor during a call and look at which program uses the most CPU."
    " Tell me what you see there, and I can help you further.\n"
    "User: The browser uses 180 percent. Is that even possible?\n"
    "Assistant: Yes. On most systems 100 percent means one whole core, so a program that keeps two cores busy"
    " shows almost 200 percent.",
    "def merge_intervals(intervals):\n"
    '    """Return the intervals with overlapping ones joined, sorted by start.\n'
    "\n"
    "    Each interval is a pair (start, end) with start <= end. Intervals that only touch are joined too.\n"
    '    """\n'
    "    merged = []\n"
    "    for start, end in sorted(intervals):\n"
    "        if merged and start <= merged[-1][1]:\n"
    "            merged[-1] = (merged[-1][0], max(merged[-1][1], end))\n"
    "        else:\n"
    "            merged.append((start, end))\n"
    "    return merged\n"
    "\n"
    "\n"
    "def total_length(intervals):\n"
    '    """Return how much of the line is covered by at least one interval."""\n'
    "    return sum(end - start for start, end in merge_intervals(intervals))\n"
    "\n"
    "\n"
    "assert merge_intervals([(5, 7), (1, 3), (2, 4)]) == [(1, 4), (5, 7)]\n"
    "assert total_length([(0, 10), (5, 12), (20, 21)]) == 13",
    "Vegetable soup for four people\n"
    "\n"
    "Ingredients: two tablespoons of olive oil, one large onion, two cloves of garlic, three carrots, two "
    "sticks of celery, two potatoes, a tin of chopped tomatoes, one litre of vegetable stock, a handful of "
    "green beans, salt, pepper and a little fresh thyme.\n"
    "\n"
    "Method: Peel and chop the onion and fry it gently in the oil for about eight minutes, until it is soft "
    "but not brown. Add the garlic and stir for another minute. Cut the carrots, the celery and the potatoes "
    "into pieces of about one centimetre and add them to the pot. Pour in the tomatoes and the stock, add the"
    " thyme, and bring everything to the boil. Turn down the heat and let it simmer for twenty minutes. Add "
    "the beans and cook for five minutes more. Taste the soup before you add salt, because the stock may be "
    "salty already. Serve it hot, with bread and a spoonful of yoghurt.",
    "The city council voted on Tuesday evening to rebuild the old swimming hall on Mill Street instead of "
    "closing it. The decision, which passed by fourteen votes to nine, follows two years of argument about "
    "the cost of the repairs. Engineers had warned in 2019 that the roof would not survive another decade of "
    'heavy snow. "This is the only pool that a child in the northern districts can reach on foot," said '
    "councillor Ellen Brandt, who led the campaign to keep it. Opponents pointed out that the price has risen"
    " from eleven to nearly seventeen million since the first estimate, and that a new building outside the "
    "city would have been cheaper to heat. Work is expected to begin in March and to last about eighteen "
    "months. Until then the hall will stay open in the mornings, and schools will be given priority from "
    "Monday to Thursday.",
    "Dear Mr. Okafor,\n"
    "\n"
    "Thank you for your message of 4 May about the delivery of your bookcase. I am sorry that one of the side"
    " panels arrived with a crack. I have looked at the photographs that you sent, and there is no doubt that"
    " the damage happened in our warehouse. A new panel will leave us tomorrow and should reach you by "
    "Friday. You do not have to send back the old one; please recycle it if you can. Because you have now "
    "waited for more than three weeks, we have also refunded the cost of the delivery, which you should see "
    "on your account within five working days.\n"
    "\n"
    "If anything else is missing or damaged, simply reply to this message and it will come straight to my "
    "desk. Thank you for your patience, and for describing the problem so clearly.\n"
    "\n"
    "Yours sincerely,\n"
    "Hannah Lindqvist\n"
    "Customer Service",
    "Question: A train leaves the station at 9:15 and travels at 80 kilometres an hour. A second train leaves"
    " the same station at 9:45 on a parallel track and travels at 120 kilometres an hour in the same "
    "direction. When does the second train pass the first?\n"
    "\n"
    "Answer: The first train has a head start of half an hour. In that time it covers 80 × 0.5 = 40 "
    "kilometres. The second train is faster by 120 − 80 = 40 kilometres an hour, so the distance between them"
    " shrinks by 40 kilometres every hour. It therefore takes exactly one hour to close the gap of 40 "
    "kilometres. The second train left at 9:45, so it passes the first at 10:45. We can check this: by 10:45 "
    "the first train has travelled for 1.5 hours and is 120 kilometres from the station, and the second has "
    "travelled for one hour and is also 120 kilometres from the station.",
    "Die kleine Stadt liegt an einem Fluss, der im Frühling oft über die Ufer tritt. Deshalb stehen die "
    "ältesten Häuser auf einem Hügel, und nur die Mühle und die Gerberei wurden unten am Wasser gebaut. Heute"
    " ist in der Mühle ein Museum, in dem man sehen kann, wie früher Mehl gemahlen wurde. Jeden Samstag gibt "
    "es auf dem Platz vor der Kirche einen Markt. Die Bauern aus der Umgebung verkaufen dort Gemüse, Käse und"
    " Honig, und im Herbst auch Äpfel und Nüsse. Wer mit dem Zug kommt, braucht vom Bahnhof etwa zehn Minuten"
    " zu Fuß. Im Sommer fahren außerdem kleine Boote zwischen der alten Brücke und dem Badesee. Besonders "
    "schön ist der Weg am Abend, wenn die Sonne hinter den Hügeln verschwindet.",
    "La bibliothèque du quartier ouvre à dix heures tous les jours sauf le lundi. On peut y emprunter jusqu'à"
    " huit livres pour trois semaines, et des films pour une semaine. L'inscription est gratuite pour les "
    "enfants et les étudiants; les autres lecteurs paient douze euros par an. Au premier étage se trouve une "
    "grande salle de lecture, où il est interdit de téléphoner, et au deuxième une salle plus petite où l'on "
    "peut travailler en groupe. Le mercredi après-midi, une bibliothécaire raconte des histoires aux enfants "
    "de trois à sept ans. Si un livre n'est pas disponible, on peut le réserver sur le site de la "
    "bibliothèque et l'on reçoit un message dès qu'il est de retour.",
    '{"order": 48213, "status": "shipped", "customer": {"name": "A. Rivera", "country": "ES", "language": '
    '"es"}, "items": [{"sku": "LMP-004", "title": "Desk lamp, brass", "quantity": 1, "price": 49.90}, {"sku":'
    ' "BLB-220", "title": "LED bulb E27, 8 W", "quantity": 4, "price": 3.25}, {"sku": "CBL-015", "title": '
    '"Extension cable, 5 m", "quantity": 1, "price": 11.40}], "total": 74.30, "currency": "EUR", "shipping": '
    '{"method": "standard", "carrier": "Correos", "tracking": "PQ4X7B0701234560128015T", "estimated": '
    '"2024-11-19"}, "notes": ["Leave with the neighbour on the second floor if nobody is at home.", "Gift: do'
    ' not include the invoice."]}',
    "The history of the bicycle is shorter than most people think. In 1817 Karl Drais built a wooden running "
    "machine with two wheels in line, which the rider pushed along with the feet. It was fast on a good road,"
    " but there were few good roads, and within a few years it was forgotten. In the 1860s French makers "
    "added pedals to the front wheel, and the machine became known as the boneshaker, for reasons that every "
    "rider understood. To go faster, the front wheel had to become larger, and so the high bicycle of the "
    "1870s was born: elegant, quick, and dangerous, because a small stone could throw the rider over the "
    "handlebars. The safety bicycle of 1885 solved the problem with a chain that drove the rear wheel. Three "
    "years later John Dunlop fitted it with tyres filled with air. Since then the shape of the bicycle has "
    "hardly changed.",
    "How to change a flat tyre on a car:\n"
    "\n"
    "1. Stop on firm, level ground, away from traffic, and switch on the warning lights.\n"
    "2. Put on the parking brake and place a stone or a block behind one of the other wheels.\n"
    "3. Loosen the wheel nuts by half a turn while the wheel is still on the ground.\n"
    "4. Place the jack under the lifting point that is shown in the manual, and raise the car until the wheel"
    " is free.\n"
    "5. Remove the nuts, keep them together, and take off the wheel.\n"
    "6. Put on the spare wheel and tighten the nuts by hand, each one a little at a time, in the order of a "
    "star.\n"
    "7. Lower the car and tighten the nuts firmly with the wrench.\n"
    "8. Check the pressure of the spare tyre at the next petrol station, and have the flat one repaired soon."
    " Many spare wheels are only made for short distances and for a speed of at most 80 kilometres an hour.",
    "SELECT c.name, c.city, COUNT(o.id) AS num_orders, SUM(o.total) AS revenue\n"
    "FROM customers AS c\n"
    "LEFT JOIN orders AS o ON o.customer_id = c.id AND o.placed_at >= '2023-01-01'\n"
    "WHERE c.is_active\n"
    "GROUP BY c.id, c.name, c.city\n"
    "HAVING SUM(o.total) > 1000\n"
    "ORDER BY revenue DESC, c.name\n"
    "LIMIT 20;\n"
    "\n"
    "The query lists the twenty active customers with the highest revenue since the beginning of 2023. The "
    "condition on the date stands in the join and not in the WHERE clause, so that customers without recent "
    "orders would still be kept by the left join; they are removed later by HAVING, because the sum over no "
    "rows is NULL and NULL is not greater than 1000. If you want to see these customers too, use "
    "COALESCE(SUM(o.total), 0) and lower the limit.",
    "Old winter, take your coat of grey\n"
    "and leave the garden to the rain;\n"
    "the snow has had its longest day,\n"
    "the brook is talking once again.\n"
    "\n"
    "The blackbird, early on the wall,\n"
    "has tried three notes and kept the best;\n"
    "the wind that made the branches fall\n"
    "now carries straw to build a nest.\n"
    "\n"
    "And we who sat beside the fire\n"
    "and counted logs and counted hours\n"
    "go out, with boots, through mud and mire,\n"
    "to see if there are any flowers.\n"
    "\n"
    "There is but one, and it is small,\n"
    "and white, and bent, and hardly there:\n"
    "it does not seem to mind at all\n"
    "the cold that lingers in the air.",
    "In economics, the price of a good is often explained by supply and demand. When many people want to buy "
    "something and only a few have it to sell, the price rises; when shops are full of it and nobody comes, "
    "the price falls. The idea is simple, but it hides several assumptions. It supposes that buyers know what"
    " is offered elsewhere, that sellers can enter and leave the market freely, and that one unit of the good"
    " is as useful as another. In real markets these conditions hold only in part. A patient who needs a "
    "certain medicine cannot wait for the price to fall, and a farmer who has planted wheat cannot harvest "
    "barley. Economists therefore speak of elasticity, which measures how strongly the quantity that is "
    "bought changes when the price changes by one per cent. The demand for salt is hardly elastic; the demand"
    " for holidays in one particular village is very much so.",
    '2024-03-18 06:12:44 INFO  scheduler: starting nightly backup of database "inventory"\n'
    "2024-03-18 06:12:45 INFO  backup: 214 tables found, 3 excluded by configuration\n"
    '2024-03-18 06:19:02 WARN  backup: table "events" is larger than 40 GB, switching to parallel dump with 4'
    " workers\n"
    "2024-03-18 06:31:57 INFO  backup: dump finished in 1152 s, 61.3 GB written\n"
    '2024-03-18 06:31:58 INFO  upload: sending 62 parts to bucket "nightly"\n'
    "2024-03-18 06:40:10 ERROR upload: part 37 failed: connection reset by peer (attempt 1 of 5)\n"
    "2024-03-18 06:40:21 INFO  upload: part 37 sent on attempt 2\n"
    "2024-03-18 06:52:30 INFO  upload: all parts sent, checksum verified\n"
    "2024-03-18 06:52:31 INFO  scheduler: nightly backup finished, next run at 2024-03-19 06:12:44",
    '"You are late," said the watchmaker, without lifting his eyes from the bench.\n'
    '"The bridge was closed," Tomas answered. "They are painting it again."\n'
    '"They are always painting it. That is why one leaves early." He held something tiny up to the light, '
    'frowned, and put it back on the felt. "Do you see this? It is the balance wheel of a watch that fell '
    'into a lake. It lay there for eleven years, and then a man went fishing and caught it."\n'
    '"And will it go again?"\n'
    '"That depends." The old man pushed the stool towards him with his foot. "It depends on whether the boy '
    "who was late today has steady hands, because mine are not what they were. Sit down. Wash them first. And"
    " take off your ring, or it will scratch the plate, and then I shall have to explain to a very patient "
    'man that he has waited eleven years and three weeks for nothing."',
    "A binary search tree keeps its keys in order: everything in the left subtree of a node is smaller than "
    "the node's key, and everything in the right subtree is larger. To find a key, start at the root and go "
    "left or right until the key is found or there is nowhere left to go. If the tree is balanced, each step "
    "halves the number of keys that remain, so a tree of a million keys needs about twenty steps. If the keys"
    " were inserted in sorted order, however, the tree degenerates into a list, and a search may take a "
    "million steps. Balanced trees, such as red-black trees and AVL trees, avoid this by rotating nodes after"
    " an insertion or a removal. Hash tables are usually faster for looking up single keys, but they cannot "
    "list the keys in order or find the smallest key above a given value, which a tree does easily.",
    "Summary: The committee met on 12 September to discuss the plans for the reading festival. Ms. Adeyemi "
    "reported that the school hall is available on both days, but that the kitchen may only be used until "
    "five o'clock. Mr. Novak has asked six authors, of whom four have accepted; he will ask two more by the "
    "end of the month. The budget was approved with one change: the amount for printing was reduced from 600 "
    "to 450, because most people now read the programme on their phones, and the difference will be spent on "
    "a sign language interpreter for the opening evening. There was a long discussion about whether to charge"
    " for the workshops. In the end it was agreed that they should be free for children and cost five for "
    "adults. The next meeting will take place on 10 October at half past seven.",
    "The human heart beats about a hundred thousand times a day. It has four chambers: two atria, which "
    "receive the blood, and two ventricles, which pump it out. Blood that is poor in oxygen comes from the "
    "body into the right atrium, passes into the right ventricle and is pumped to the lungs. There it gives "
    "off carbon dioxide and takes up oxygen before it returns to the left atrium. The left ventricle, whose "
    "wall is the thickest because it has the longest way to serve, drives it through the aorta to all organs."
    " Valves between the chambers keep the blood from flowing back; their closing makes the two sounds that a"
    " doctor hears through a stethoscope. The rhythm is set by a small group of cells in the wall of the "
    "right atrium, the sinus node, which can be slowed down or sped up by nerves and hormones.",
    'User: Please rewrite this sentence so that it sounds more polite: "Send me the report today, I have been'
    ' waiting for days."\n'
    "Assistant: Here are three versions, from friendly to formal:\n"
    '- "Could you send me the report today? I have been looking forward to reading it."\n'
    '- "Would it be possible for you to send me the report today? I would need it in order to go on with my '
    'part."\n'
    '- "I would be grateful if you could let me have the report by the end of the day, as I have been waiting'
    ' for it for some time."\n'
    "User: The second one is good, but my boss does not like long sentences.\n"
    'Assistant: Then I would suggest two short ones: "Could you please send me the report today? I need it to'
    ' go on with my part."\n'
    "User: Thanks! And if she asks why it is urgent?\n"
    'Assistant: You might say: "The figures go to the printer on Thursday, so tomorrow would be too late to '
    'check them."',
    "Lighthouses were first built to show the way into a harbour and only much later to warn of rocks. The "
    "most famous of the ancient world stood at Alexandria and was more than a hundred metres high. For many "
    "centuries the light came from a wood or coal fire, which used a great deal of fuel and could hardly be "
    "seen in rain. In 1822 the French physicist Augustin Fresnel designed a lens made of many rings of glass,"
    " each of which bent the light a little more than the one inside it. With such a lens a single oil lamp "
    "could be seen at a distance of more than thirty kilometres. Each lighthouse was given its own rhythm of "
    "flashes, so that sailors could tell which one they were looking at. Today almost all of them work "
    "without a keeper, and many have become hotels, museums or homes for sea birds.",
    "#include <stdio.h>\n"
    "#include <string.h>\n"
    "\n"
    "/* Return the length of the longest run of equal characters in text; 0 for an empty string. */\n"
    "static size_t longest_run(const char *text)\n"
    "{\n"
    "    size_t best = 0, current = 0;\n"
    "    for (size_t i = 0; text[i] != '\\0'; i++) {\n"
    "        current = (i > 0 && text[i] == text[i - 1]) ? current + 1 : 1;\n"
    "        if (current > best)\n"
    "            best = current;\n"
    "    }\n"
    "    return best;\n"
    "}\n"
    "\n"
    "int main(int argc, char **argv)\n"
    "{\n"
    "    for (int i = 1; i < argc; i++)\n"
    '        printf("%s: %zu\\n", argv[i], longest_run(argv[i]));\n'
    "    return argc > 1 ? 0 : 1;\n"
    "}",
)
